"""Regular expressions for speech verbs and names in Chinese and English prose."""

from __future__ import annotations

import re

ZH_VERB = (
    r"(?:(?<![听传据小学])说(?![明法服])|(?<![知味街轨渠河隧频报难地])道(?![路理具])|(?<![学访疑])问(?!题)|(?<!报)答(?!案)|喊|(?<!名)叫(?![做作])"
    r"|嚷|吼|骂|叹|嘟囔|嘀咕|念叨|劝|催|吩咐|嘱咐|回应|开口|解释|补充|提醒|告诉|命令|宣布|插嘴|打断|招呼|应声|回话|央求|哀求|感叹|反驳|附和"
    r"|提议|建议|抱怨|安慰|呵斥|责备|自语|吆喝|承认|保证)"
)
EN_VERB = (
    r"(?:said|says|asked|asks|replied|replies|answered|answers|cried|cries|shouted|shouts|whispered|whispers|called|calls"
    r"|muttered|mutters|murmured|exclaimed|added|adds|continued|continues|yelled|sighed|laughed|snapped|declared|remarked"
    r"|observed|begged|demanded|inquired|enquired|explained|agreed|insisted|repeated|returned|responded|told|tells|warned"
    r"|grumbled|began|went on|growled|mumbled|sobbed|giggled|hissed|barked|announced|suggested|admitted|confessed"
    r"|protested|objected|retorted|countered|scoffed|sneered|mused|drawled|chuckled|bellowed|teased|ventured|conceded"
    r"|offered|reminded|assured|chimed in|croaked|groaned|gasped|roared|screamed|shrieked|pleaded|wondered|argued"
    r"|commented|noted|stammered|stuttered|urged|concluded|finished|interrupted|put in|corrected|promised"
    r"|ordered|commanded)"
)
ZH_CUE = re.compile(rf"(?P<head>.*?){ZH_VERB}(?:道|着|了|起来|一?声|一句|话)*(?P<tail>[^，,：:]{{0,8}})[，,：:]?\s*")
EN_CUE = re.compile(rf"(?P<head>.*?)\b{EN_VERB}\b(?P<tail>[^,:]{{0,60}})[,:]?\s*", re.IGNORECASE)
SENTENCE_END = re.compile(
    r"(?<=[。！？!?；;…])|(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bMs\.)(?<!\bSt\.)(?<=\.)(?=\s|$)"
)
CLAUSE_END = re.compile(r"[，,、]")
ZH_OBJECT = re.compile(r"(?:[对向跟朝给替和与同为冲]|告诉|问|看着|望着|盯着|拉着|看了看|喊|叫|谢|见|让|请)$")
EN_OBJECT = re.compile(
    r"\b(?:to|at|with|for|of|from|after|beside|behind|toward|towards|by|told|asked)\s+$", re.IGNORECASE
)
ZH_LEADING = re.compile(
    r"^(?:于是|只见|只听|忽然|突然|这时候?|那时|但是?|可是?|而|却|接着|然后|随后|后来|旁边的|听罢|结果)+"
)
ZH_TRAILING = re.compile(
    r"(?:[^\s]着|[^\s]{2}地|微|连忙|急忙|赶紧|立刻|马上|又|也|就|便|才|再|忽然|突然|[轻低大高小柔朗沉]声|冷冷|笑|微笑|哈哈|一笑|摇摇?头"
    r"|点点?头|叹气|继续|接着|开口|慢慢|悄悄|只|都|还|则|不禁|不由得|[对向跟朝给和冲][^，]{1,4}|抬起?头|转身|回头|先|在[^，]{1,4}|这才|回|笑了|忙|大|反)$"
)
ZH_TO = re.compile("[对向跟朝给和冲]")
ZH_PRONOUN = re.compile(
    r"(?:我们?|你们?|您|他们?|她们?|它们?|大家|众人|有人|对方|那人|这人|谁|自己|人们|二人|两人|一人|别人)"
)
ZH_NO_NAME = re.compile(
    "[着了过]|[地得的]$|^(?:这|那|有|没|不|今|明|昨|一|在|从|如|因|虽|就|当|正|只|还|也|都|什|怎|为|老[师是实早]|小[心声时])"
)
ZH_FAMILIAR = re.compile(r"[阿老小][\u4e00-\u9fff]")
ZH_NO_LAST = re.compile(
    "[一不也却又正还便就才只在从把被对向跟冲给和与没连忽终听看走站坐笑点摇抬放拿接想回转伸低叹应说道问答喊叫来去]$"
)
ZH_NAME = re.compile(r"[\u4e00-\u9fff]{2,4}|[\u4e00-\u9fff]{1,6}·[\u4e00-\u9fff]{1,8}")
EN_PRONOUN = re.compile(r"\b(?:I|you|he|she|it|we|they|someone|somebody|one)\b", re.IGNORECASE)
EN_NAME = (
    r"(?:(?:Mr|Mrs|Ms|Dr|St)\.? |(?:Old|Young|Aunt|Uncle|Captain|Lady|Lord|Sir|Miss|Mother|Father|Master) )?"
    r"[A-Z][\w’'-]*\w(?: [A-Z][\w-]+)?"
)
EN_ADJECTIVE = "(?:(?:old|young|little|poor|good|dear) )?"
EN_SAID_NAME = re.compile(
    rf"^\s*,?\s*{EN_VERB}\s+{EN_ADJECTIVE}(?P<name>{EN_NAME}|[Tt]he [a-z]+(?: [a-z]+)?)(?=[\s,.;:]|$)"
)
EN_NAME_SAID = re.compile(rf"(?P<name>{EN_NAME}|[Tt]he [a-z]+)(?:,[^,]*,)?(?:\s+\w+ly|\s+then|\s+only)?\s+{EN_VERB}\b")
EN_START = re.compile(rf"(?P<name>{EN_NAME})\s+[a-z]")
EN_INSIDE = re.compile(r"(?<=[a-z,;] )[A-Z]\w+")
EN_NO_NAMES = frozenset(
    (
        *("I", "You", "He", "She", "It", "They", "We", "Your", "His", "Her", "Its", "Our", "Their", "One", "Someone"),
        *("Then", "And", "But", "The", "This", "That", "There", "When", "What", "Where", "Who", "Why", "How", "So"),
        *("Now", "Here", "A", "An", "As", "At", "In", "On", "Of", "If", "No", "Not", "Yes", "Well", "Oh", "My"),
        *("After", "Before", "While", "Once", "Nobody", "Everyone", "All", "Both", "From", "With", "For", "Even"),
    )
)
