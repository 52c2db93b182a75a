"""Invented scenes, written by hand. The speaker of each quote is behind it in `<>`."""
# ruff: noqa: E501

from __future__ import annotations

SCENES = {
    "zh1": """\
清晨的渡口起了雾。小棹把船拴好，回过头来，冲岸上喊：“今天不开船啦！”<小棹>
“为什么不开？”<石头>石头跑过来，喘着气问道，“我还要去南岸呢。”<石头>
“雾大。”<小棹>小棹只说了两个字。
石头急了，一屁股坐在台阶上：“那我等。”<石头>
墨姨端着茶走出来，听见这话，不由得笑出声来：“你这孩子，等到什么时候是个头？”<墨姨>
“等到雾散。”<石头>石头倔强地说。
小棹叹了口气，摆摆手道：“行吧行吧。”<小棹>
“墨姨，”<石头>石头转过脸去，“你会讲故事，讲一个吧。”<石头>
墨姨想了想，慢悠悠地开口道：“从前有一座钟楼……”<墨姨>
阿砚正好路过，插嘴道：“我就是敲钟的！”<阿砚>
大家都笑了。
“你敲的钟总是慢半拍。”<老麦>老麦在一旁嘟囔。
阿砚不服气，反驳说：“那是你的耳朵慢。”<阿砚>
“都别吵，”<墨姨>墨姨说着，给每个人倒了一杯茶，“喝茶。”<墨姨>
石头接过茶，小声问小棹：“雾什么时候散？”<石头>
小棹摇头：“谁知道呢。”<小棹>
这就是人们常说的“雾天三杯茶”。
""",
    "en1": """\
The fog had come down over the quay before breakfast.

"No boat today,"<Bo> Bo called from the mooring post. "Not before the bell."<Bo>

"But I must be across by noon!"<Ada> Ada dropped her basket. "My sister is waiting."<Ada>

Bo shrugged. "She will wait."<Bo>

"That,"<Captain Ferris> said old Captain Ferris, who had been listening, "is no way to speak to a lady."<Captain Ferris>

Ada turned to him. "Thank you, Captain."<Ada>

"Don't thank me,"<the captain> the captain grumbled. He lit his pipe and asked Bo, "Have you any tea?"<the captain>

"There is always tea,"<Bo> Bo replied.

"Then we shall have tea,"<Ada> Ada said firmly, "and a story."<Ada>

Ferris cleared his throat. "Once,"<Captain Ferris> he began, "there was a clock tower."<Captain Ferris>

Bo whispered to Ada: "He tells it every week."<Bo>
""",
    "zh2": """\
七叔把算盘一推，粗声粗气地嚷起来：“谁又来借钱？”<七叔>
来的是豆豆。豆豆缩着脖子，半天才挤出一句话：“七叔，我不是来借钱的。”<豆豆>
“那你来做什么？”<七叔>
“我来还钱。”<豆豆>豆豆掏出三枚贝币，放在柜台上。
七叔愣住了。他拿起贝币看了又看，问：“哪儿来的？”<七叔>
“阿暖姐给的。”<豆豆>豆豆老老实实回答，“我帮她烧了三天水。”<豆豆>
正说着，阿暖掀帘子进来了。“七叔，别为难孩子。”<阿暖>
七叔哼了一声道：“我几时为难过他？”<七叔>
阿暖笑道：“整条街都听见你的嗓门了。”<阿暖>
豆豆忍不住笑了起来。七叔瞪他一眼：“笑什么笑！”<七叔>
“我没笑。”<豆豆>豆豆连忙捂住嘴。
阿暖告诉七叔：“明天温泉要换水，你来帮忙吧。”<阿暖>
“不去，”<七叔>七叔摆手，“我还要数钱呢。”<七叔>
""",
    "en2": """\
"You are late,"<the miller> said the miller, without looking round.

Cleo put the sack down. "The bridge was up."<Cleo>

"The bridge is always up."<the miller> The miller wiped his hands and frowned. "Well? What have you brought me?"<the miller>

"Barley,"<Cleo> she said. "And a letter from Esme."<Cleo>

"From Esme!"<the miller> He sat down at once. "Read it to me."<the miller>

Cleo broke the seal. "She writes that the lamp is out,"<Cleo> she said slowly, "and that nobody will climb the stair."<Cleo>

"Nobody?"<the miller> shouted the miller. "I shall climb it myself!"<the miller>

Mr. Finn, who kept the inn next door, put his head through the window and asked what the noise was about.

"The lamp is out, Mr. Finn,"<Cleo> Cleo told him.

"Then light it,"<Mr. Finn> Mr. Finn remarked, and went away again.
""",
    "zh3": """\
　　雪下了一夜。阿蔻推开花房的门，见远山站在门口，便问：“你怎么来了？”<阿蔻>
　　远山拍拍肩上的雪：“花还活着吗？”<远山>
　　“活着，都活着。”<阿蔻>阿蔻笑着把他让进屋，“你坐，我去倒茶。”<阿蔻>
　　远山没有坐，绕着花架走了一圈，低声道：“这一盆，是我送你的那盆？”<远山>
　　“可不是嘛。”<阿蔻>
　　“长这么高了。”<远山>
　　“三年了。”<阿蔻>阿蔻说。
　　两人都不说话了。过了一会儿，远山才说：“我明天要走。”<远山>
　　阿蔻手里的茶壶晃了晃。“走？去哪儿？”<阿蔻>她问。
　　“南岸。”<远山>
　　这时，门外有人喊：“远山！船要开了！”<小棹>
　　是小棹的声音。远山应了一声：“就来！”<远山>
　　阿蔻忽然说道：“把这盆花带上。”<阿蔻>
　　“带不走的，”<远山>远山摇头，“船上风大。”<远山>
　　小棹探进头来，催促道：“快些，雾要起了。”<小棹>
　　镇上的人管这种雪叫“棉被雪”。
""",
    "en3": """\
Esme stood on the ladder. "Hold it still!"<Esme> she cried.

"I am holding it,"<Dov> Dov said. "It is the wind."<Dov>

"There is no wind in here, you goose."<Esme>

Dov looked up at her. "Then it is the ladder."<Dov>

From the far end of the hall came the voice of the librarian. "Quiet, please!"<the librarian>

"Sorry!"<they> they both called.

Esme climbed down with the book under her arm. "Page forty,"<Esme> she whispered. "Read it."<Esme>

He read it twice. "This is the map,"<Dov> he said at last.

"Of course it is the map,"<Esme> answered Esme. "What did I tell you?"<Esme>

"You told me it was a cookery book."<Dov>

The librarian had come up behind them, and now he coughed. "May I ask,"<the librarian> he said, "what you two are doing with my cookery book?"<the librarian>
""",
    "zh4": """\
　　黄昏时分，驿站的灯亮了。陆先生推门而入，抖落一身雨水，扬声唤道：“店家，可还有空房？”<陆先生>
　　柜台后的柳婶头也不抬：“只剩柴房，住不住？”<柳婶>
　　“住。”<陆先生>
　　“十文钱，先付后住。”<柳婶>
　　陆先生苦笑一声，摸出钱袋，放低了声音：“婶子，能赊一晚么？”<陆先生>
　　“赊？”<柳婶>柳婶终于抬起头来，冷笑道，“前天那个书生也说赊，今早人就没影了。”<柳婶>
　　小六端着热汤从后厨跑出来，不小心撞了陆先生一下，慌忙赔礼：“对不住，对不住！”<小六>
　　“不妨事。”<陆先生>陆先生扶住他，“你这汤，闻着真香。”<陆先生>
　　小六挠挠头，嘿嘿笑道：“我娘教的方子，放了三片老姜。”<小六>
　　“小六！”<柳婶>柳婶一拍桌子，“谁让你跟客人闲扯的？”<柳婶>
　　小六吐了吐舌头，一溜烟钻回后厨去了。
　　陆先生沉吟片刻，从怀里取出一支竹笛，轻轻搁在柜上：“这个抵一晚，可够？”<陆先生>
　　柳婶拿起笛子端详半天，语气软了下来：“会吹吗？”<柳婶>
　　“略懂。”<陆先生>
　　“那就吹一曲，”<柳婶>她把笛子推了回去，“吹得好，房钱免了。”<柳婶>
　　笛声响起时，连雨都像停了一停。一曲终了，柳婶背过身去，半晌才开口：“这曲子，我男人从前也吹。”<柳婶>
　　陆先生一怔，轻声问：“他如今在何处？”<陆先生>
　　“走了七年了。”<柳婶>柳婶擦了擦眼角，朝后厨喊了一嗓子，“小六，给客人收拾东厢房！”<柳婶>
　　“哎！”<小六>后厨里传来小六清脆的应答声。
""",
    "zh5": """\
“船老大，还能再快些吗？”<青荷>青荷攥着栏杆，第三次催促。
“姑娘，风就这么大。”<船老大>船老大叼着烟斗，不紧不慢地答。
坐在船尾的胖和尚睁开一只眼，慢条斯理地劝道：“急什么，水到渠成。”<胖和尚>
“大师说得轻巧！”<青荷>青荷回头瞪他，“晚了一步，我弟弟就要被卖到北边去了。”<青荷>
胖和尚闻言坐直了身子：“卖到北边？是谁要卖他？”<胖和尚>
“还能有谁，”<青荷>她咬着牙说，“赌坊的崔三。”<青荷>
“崔三……”<船老大>船老大把烟斗从嘴里拿下来，若有所思地重复了一遍，“左脸有疤的那个？”<船老大>
“您认得他？”<青荷>
“化成灰我也认得。”<船老大>
“那您知道他在哪儿落脚？”<青荷>
“码头东边，第三间仓房。”<船老大>船老大啐了一口，“那小子欠我两年船钱。”<船老大>
胖和尚双手合十，念了声佛号，随即笑眯眯地提议：“既然如此，不如咱们三个一道去讨债？”<胖和尚>
青荷愣了愣，迟疑着问道：“大师也去？”<青荷>
“贫僧腿脚虽慢，力气倒有一把。”<胖和尚>
船老大哈哈大笑，冲着帆索吼了一嗓子：“升满帆！”<船老大>
船身猛地一晃。青荷险些跌倒，被胖和尚一把扶住。“站稳喽，”<胖和尚>他乐呵呵地说，“风来了。”<胖和尚>
岸上的“醉仙楼”已经看得见了。
青荷望着灯火，自言自语道：“小满，姐姐来了。”<青荷>
“姑娘，”<船老大>船老大忽然压低嗓门，“待会儿你跟在我后头，别出声。”<船老大>
“知道了。”<青荷>青荷点点头。
""",
    "en4": """\
Hester Vane did not believe in ghosts, and she said so twice before supper.

"Then you won't mind the east room,"<Mrs. Pruitt> said Mrs. Pruitt, setting down the lamp.

"Not in the least,"<Hester> replied Hester.

Old Tobias, who had been polishing the same spoon for an hour, looked up. "Nobody's slept there since the flood,"<Tobias> he muttered.

"Tobias!"<Mrs. Pruitt> Mrs. Pruitt snapped. "Mind your spoons."<Mrs. Pruitt>

"I only thought the lady ought to know."<Tobias>

"The lady,"<Hester> Hester observed, "is quite able to ask questions for herself. What happened in the flood?"<Hester>

There was a silence. Mrs. Pruitt folded her hands. "My husband's brother was lost,"<Mrs. Pruitt> she said at last. "They never found him."<Mrs. Pruitt>

"I am sorry,"<Hester> said Hester quietly.

"It was a long time ago."<Mrs. Pruitt>

"Eleven years,"<Tobias> put in Tobias.

"Eleven years come Friday,"<Mrs. Pruitt> Mrs. Pruitt corrected him.

At that moment the door banged open and a boy came in, streaming with rain. "The bridge is down!"<Will> he shouted.

"Shut the door, Will,"<Mrs. Pruitt> ordered Mrs. Pruitt. "Were you hurt?"<Mrs. Pruitt>

Will shook his head. "But there's a man on the other side. He was waving a lantern."<Will>

"What sort of man?"<Hester> Hester asked.

"I couldn't rightly see, miss."<Will>

"Tall?"<Hester>

"Tall enough."<Will>

Tobias set down his spoon. "Well,"<Tobias> he said, "she's about to change her mind about ghosts."<Tobias>
""",
    "en5": """\
"Are we lost?"<Juniper> asked Juniper, for the third time that morning.

Her uncle turned the map the other way up. "We are exactly where I meant us to be,"<Uncle Mortimer> he announced.

"And where is that?"<Juniper>

"Here."<Uncle Mortimer> Uncle Mortimer tapped a blank part of the paper. "Between the river and the—well, between the river and something."<Uncle Mortimer>

Juniper sat down on a stone. "Mother will be furious,"<Juniper> she said.

"Your mother,"<Uncle Mortimer> said Uncle Mortimer with dignity, "is never furious. She is occasionally disappointed."<Uncle Mortimer>

"She threw a kettle at you!"<Juniper>

"A small kettle."<Uncle Mortimer>

The guide, a thin man named Osric, had been watching the clouds. "Snow by evening,"<Osric> he told them.

"Nonsense,"<Uncle Mortimer> scoffed Uncle Mortimer. "The sky is perfectly blue."<Uncle Mortimer>

Osric only shrugged. "Blue is how it starts, sir."<Osric>

"What should we do?"<Juniper> Juniper asked him.

"There's a hut past that ridge. If we go now,"<Osric> Osric said, "we'll be under a roof by dark."<Osric>

"And if we don't?"<Juniper>

"Then we won't."<Osric>

Uncle Mortimer folded the map with great care. "I have always been fond of huts,"<Uncle Mortimer> he said. Then, more softly, to Juniper: "Was it really the large kettle?"<Uncle Mortimer>

"The largest,"<Juniper> Juniper whispered back.
""",
    "zh6": """\
第七章　借伞

　　雨越下越大，书院门口只剩下两个人。
　　“你的伞呢？”<顾长青>顾长青偏过头去，问身边的小姑娘。
　　叶小满把书袋顶在头上，撇撇嘴说：“借给先生了。”<叶小满>
　　“先生没有伞？”<顾长青>
　　“先生什么都没有，”<叶小满>叶小满叹道，“连袜子都是破的。”<叶小满>
　　顾长青忍不住笑出了声。他从背后抽出一把旧油纸伞，递了过去：“拿着。”<顾长青>
　　“那你怎么办？”<叶小满>
　　“我跑得快。”<顾长青>
　　话音未落，院里走出一个撑伞的老人，正是看门的何伯。何伯咳嗽两声，慢吞吞地说：“跑得再快，也快不过雨。”<何伯>
　　“何伯！”<叶小满>叶小满欢呼一声扑了上去，“您送我们吧！”<叶小满>
　　“送，送。”<何伯>何伯乐得合不拢嘴，“不过有个条件。”<何伯>
　　顾长青警惕地后退半步：“什么条件？”<顾长青>
　　何伯眯起眼，压着嗓子道：“谁把我窗台上那盆兰花浇死的，招了，就送。”<何伯>
　　两个孩子面面相觑。
　　“是他！”<叶小满>叶小满抢先指着顾长青。
　　“是她！”<顾长青>顾长青同时喊道。
　　何伯哼了一声：“那就一起淋着吧。”<何伯>
　　“别别别，”<顾长青>顾长青连连摆手，“我赔您一盆还不成吗？”<顾长青>
　　“两盆。”<何伯>
　　“两盆就两盆！”<顾长青>
　　何伯这才把伞往前一送，得意地吩咐：“走，一人抓我一边袖子。”<何伯>
""",
    "zh7": """\
“喂，您好，这里是二手书店。”<沈悦>沈悦夹着电话，一边打包一边说。
电话那头沉默了几秒，一个沙哑的男声问：“你们收不收日记？”<男声>
“日记？”<沈悦>沈悦停下手里的活，“谁的日记？”<沈悦>
“我自己的。”<男声>
她看了看墙上的钟，快十点了。“您明天过来可以吗？”<沈悦>
“明天就来不及了。”<男声>
门铃响了。马师傅拎着两份炒面走进来，大声嚷道：“小沈，趁热吃！”<马师傅>
沈悦冲他摆摆手，捂住话筒小声说：“马师傅，等一下。”<沈悦>
“谁啊？”<马师傅>马师傅凑过来，压低声音问。
“不知道，说要卖日记。”<沈悦>
马师傅皱起眉头，半开玩笑地说：“该不会是要写小说吧？”<马师傅>
等她再把话筒贴回耳边，里面只剩下忙音。沈悦慢慢放下电话，喃喃道：“挂了。”<沈悦>
“挂了就挂了，”<马师傅>马师傅把筷子塞到她手里，“先吃面。”<马师傅>
“可是他说，明天就来不及了。”<沈悦>
“谁都这么说。”<马师傅>马师傅嘿嘿一笑，“我师父临终前也这么说，结果又活了二十年。”<马师傅>
沈悦被逗笑了，却还是盯着那部电话：“要是他再打来呢？”<沈悦>
“那就收。”<马师傅>马师傅嘴里塞满了面，含混不清地回答，“收下来，我给你当保镖。”<马师傅>
“您这身板？”<沈悦>
“怎么，瞧不起厨子？”<马师傅>
话音刚落，电话又响了。两人对望一眼，沈悦深吸一口气，拿起听筒：“您好，我们收。”<沈悦>
""",
    "en6": """\
CHAPTER THREE

The shop smelled of glue and old rain. Behind the counter Miss Aldous was mending a globe.

“We’re closed,”<Miss Aldous> she said, without turning.

“The sign says open,”<Theo> said Theo.

“The sign is optimistic.”<Miss Aldous> She pressed a strip of paper over Peru. “What do you want?”<Miss Aldous>

Theo glanced at his sister, but Beatrix was already halfway up the ladder. “We’re looking for a map,”<Theo> he explained. “One that isn’t finished.”<Theo>

At this Miss Aldous did turn round. “Who sent you?”<Miss Aldous> she demanded.

“Nobody.”<Theo>

“Somebody always does,”<Miss Aldous> Miss Aldous retorted. She wiped her fingers, one by one, on her apron. “Was it Crane?”<Miss Aldous>

“Who’s Crane?”<Beatrix> Beatrix called down from the top of the ladder.

“A thief,”<Miss Aldous> said Miss Aldous, “and my brother.”<Miss Aldous>

Theo took a step back. “We’ve never met him, honestly.”<Theo>

“Then how did you know to ask?”<Miss Aldous>

Beatrix slid to the floor in a cloud of dust. “Because of this,”<Beatrix> she said, and laid the letter on the counter. “It came to our house by mistake.”<Beatrix>

The old woman read it slowly. When she had finished she took off her spectacles.

“Well,”<Miss Aldous> murmured Miss Aldous, “he always did have dreadful handwriting.”<Miss Aldous>

“Can you help us?”<Theo> asked Theo.

“That depends.”<Miss Aldous>

“On what?”<Theo>

“On whether you are afraid of cellars.”<Miss Aldous>

“Not a bit,”<Beatrix> Beatrix declared.

“A little,”<Theo> Theo admitted at the same moment.

Miss Aldous laughed for the first time. “Good,”<Miss Aldous> she said. “One of each. Mind the third step.”<Miss Aldous>
""",
}
