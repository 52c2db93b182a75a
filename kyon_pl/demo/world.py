"""The facts of the demo's invented town, Tingluo (汀罗镇), in Chinese and in English.

A table maps a thing to the values of its intents, in the order of `INTENTS`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One fact, such as `where`, 钟楼 (clock tower), 北坡 (north slope).

    Attributes:
        language: `zh` or `en`.
        intent: kind of question, a key of the grammar's tables.
        thing: subject of the question.
        value: the answer.
        held_out: asked in validation rows only. The text of the base contains it.
    """

    language: str
    intent: str
    thing: str
    value: str
    held_out: bool


INTENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "place": ("where", "when", "keeper"),
        "food": ("taste", "price", "maker"),
        "person": ("job", "likes", "fear"),
        "object": ("owner", "colour", "kept"),
    },
    "en": {"place": ("where", "when"), "food": ("taste", "price"), "object": ("owner", "colour")},
}

TABLES: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "zh": {
        "place": {
            "钟楼": ("北坡", "黄昏", "阿砚"),
            "灯塔": ("湾口", "夜里", "老麦"),
            "渡口": ("南岸", "清晨", "小棹"),
            "面包房": ("桥头", "日出前", "阿酥"),
            "书阁": ("长廊尽头", "午后", "墨姨"),
            "温泉": ("竹林里", "雪天", "阿暖"),
            "磨坊": ("水车旁", "正午", "老麦"),
            "集市": ("石阶下", "清晨", "七叔"),
            "花房": ("东墙外", "雨后", "阿蔻"),
            "邮局": ("井边", "午后", "小棹"),
            "茶馆": ("桂树下", "黄昏", "墨姨"),
            "戏台": ("西门口", "月圆夜", "七叔"),
        },
        "food": {
            "蜜糕": ("甜", "3", "阿酥"),
            "鱼汤": ("鲜", "7", "小棹"),
            "桂花糖": ("香甜", "2", "墨姨"),
            "豆饼": ("咸", "1", "老麦"),
            "莓果茶": ("酸", "4", "阿蔻"),
            "烤栗子": ("焦香", "5", "七叔"),
            "海盐饼": ("咸", "2", "阿酥"),
            "梨膏": ("清甜", "6", "阿暖"),
            "雾米粥": ("淡", "1", "阿砚"),
            "南瓜包": ("甜", "3", "七叔"),
        },
        "person": {
            "阿砚": ("敲钟人", "下棋", "打雷"),
            "老麦": ("磨面师傅", "钓鱼", "台阶"),
            "小棹": ("摆渡人", "唱歌", "鹅"),
            "阿酥": ("面点师", "揉面", "老鼠"),
            "墨姨": ("说书人", "喝茶", "蜘蛛"),
            "阿暖": ("烧水工", "打盹", "冷风"),
            "七叔": ("杂货商", "数钱", "借钱的人"),
            "阿蔻": ("花匠", "看云", "毛虫"),
        },
        "object": {
            "铜钥匙": ("阿砚", "黄色", "木箱里"),
            "蓝布伞": ("小棹", "蓝色", "门背后"),
            "旧地图": ("墨姨", "褐色", "书架顶"),
            "银哨子": ("老麦", "银色", "抽屉里"),
            "纸风筝": ("阿蔻", "红色", "屋檐下"),
            "小罗盘": ("七叔", "黑色", "柜台上"),
            "油灯": ("阿暖", "青色", "窗台上"),
            "竹笛": ("小棹", "绿色", "船篷里"),
            "羊毛毯": ("阿暖", "白色", "藤椅上"),
            "面杖": ("阿酥", "褐色", "灶台边"),
        },
    },
    "en": {
        "place": {
            "clock tower": ("on the north slope", "at dusk"),
            "lighthouse": ("by the bay", "at night"),
            "ferry": ("on the south bank", "at dawn"),
            "bakery": ("near the bridge", "before sunrise"),
            "mill": ("beside the water wheel", "at noon"),
            "market": ("below the stone steps", "at dawn"),
            "tea house": ("under the old tree", "at dusk"),
        },
        "food": {
            "honey cake": ("sweet", "3"),
            "fish soup": ("rich", "7"),
            "bean pie": ("salty", "1"),
            "berry tea": ("sour", "4"),
            "roast nut": ("smoky", "5"),
            "pumpkin bun": ("sweet", "3"),
        },
        "object": {
            "brass key": ("Yan", "yellow"),
            "umbrella": ("Zhao", "blue"),
            "old map": ("Mo", "brown"),
            "whistle": ("Mai", "silver"),
            "paper kite": ("Kou", "red"),
            "compass": ("Qi", "black"),
        },
    },
}

ASKERS = {
    "zh": ("阿禾", "小满", "青柚", "白露", "石头", "阿蘅", "豆豆", "南枝", "小渡", "阿朵", "远山", "木鱼"),
    "en": ("Ann", "Bo", "Cleo", "Dov", "Esme", "Finn"),
}


def facts(language: str) -> list[Fact]:
    """All facts of a language, in the order of the tables. A sixth of each intent is held out."""
    return [
        Fact(language, intent, thing, values[column], held_out=(row + 2 * column) % 6 == 4)
        for kind, table in TABLES[language].items()
        for row, (thing, values) in enumerate(table.items())
        for column, intent in enumerate(INTENTS[language][kind])
    ]
