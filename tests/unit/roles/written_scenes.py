"""Invented scenes, written by hand: who says each quote stands behind it in `<>`."""
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
}
