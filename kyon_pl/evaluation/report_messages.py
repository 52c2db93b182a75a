"""All words of a report, in English and Chinese, and how dates and times are written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

Language = Literal["en", "zh"]
Words = Mapping[str, str]
"""The texts of `MESSAGES` in one language, by their keys; `str.format` fills in the values."""

MESSAGES: dict[str, tuple[str, str]] = {
    "title": ("Training report: {runs}", "训练报告：{runs}"),
    "and": (" and ", "、"),
    "months": (
        "January February March April May June July August September October November December",
        "1 2 3 4 5 6 7 8 9 10 11 12",
    ),
    "moment": ("{day} {month} {year}, {hour:02}:{minute:02}", "{year}年{month}月{day}日 {hour:02}:{minute:02}"),
    "seconds": ("{seconds:.0f} s", "{seconds:.0f} 秒"),
    "minutes": ("{minutes} min", "{minutes} 分钟"),
    "hours": ("{hours} h {minutes} min", "{hours} 小时 {minutes} 分钟"),
    "space": (" ", ""),
    # opening paragraph
    "trained": (
        "This run trained {adapter} for the base model {base} on {texts}.",
        "本次训练使用 {texts}，为基座模型 {base} 训练了{adapter}。",
    ),
    "scored": (
        "These are the scores of {adapter} for the base model {base}, trained on {texts}.",
        "这是{adapter}的得分：基座模型为 {base}，训练数据为 {texts}。",
    ),
    "state_scored": ("They come from kyon-pl validate or test.", "得分来自 kyon-pl validate 或 test。"),
    "scores_only": ("scores of validate or test", "validate 或 test 的得分"),
    "adapter_of_rank": ("a LoRA adapter of rank {rank}", "秩为 {rank} 的 LoRA 适配器"),
    "adapter": ("a LoRA adapter", " LoRA 适配器"),
    "unknown_texts": ("unknown rows", "未知的数据"),
    "unknown_base": ("(unknown)", "（未知）"),
    "state_finished": ("It finished at step {step:,}.", "训练已完成，共 {step:,} 步。"),
    "state_unfinished": (
        "It has NOT FINISHED: its curves reach step {step:,}.",
        "训练尚未完成：曲线到第 {step:,} 步为止。",
    ),
    "fell": (
        "The loss on held-out rows fell from {before:.2f} to {after:.2f}.",
        "未参与训练的数据上，损失从 {before:.2f} 降到 {after:.2f}。",
    ),
    "rose": (
        "The loss on held-out rows rose from {before:.2f} to {after:.2f}.",
        "未参与训练的数据上，损失从 {before:.2f} 升到 {after:.2f}。",
    ),
    "chrf_alone": (
        "Its replies to held-out questions have a chrF of {tuned:.0f} (similarity to the true replies, at most 100).",
        "对未参与训练的问题，回复的 chrF（与参考回复的相似度，满分 100）为 {tuned:.0f}。",
    ),
    "chrf_both": (
        "Its replies to held-out questions have a chrF of {tuned:.0f} (similarity to the true replies, at most 100); "
        "those of the base have {base:.0f}.",
        "对未参与训练的问题，回复的 chrF（与参考回复的相似度，满分 100）为 {tuned:.0f}，基座模型为 {base:.0f}。",
    ),
    # notes
    "notes": ("Please note", "注意事项"),
    "note_last_line": ("The last line of the run: {line}", "日志的最后一行：{line}"),
    "note_risen": (
        "The loss on held-out rows was lower before ({lowest:.2f} at step {step:,}): the best checkpoint is an "
        "earlier one.",
        "验证损失在第 {step:,} 步时更低（{lowest:.2f}）：最好的检查点不是最后一个。",
    ),
    "note_repeats": (
        "Replies repeat themselves: {share:.0%} of their 4-grams occurred before.",
        "回复有重复：{share:.0%} 的 4-gram 在同一条回复中出现过。",
    ),
    "note_stops": ("Only {share:.0%} of the replies end by themselves.", "只有 {share:.0%} 的回复自行结束。"),
    "note_copies": (
        "{share:.0%} of the characters of the replies are copied from their prompts.",
        "回复中 {share:.0%} 的文字是从提示词里照抄的。",
    ),
    "note_few": (
        "The scores of the replies come from only {count} questions.",
        "回复的得分只来自 {count} 个问题。",
    ),
    # facts
    "run": ("run", "训练"),
    "state": ("state", "状态"),
    "finished": ("finished at step {step:,}", "已完成（第 {step:,} 步）"),
    "unfinished": ("NOT FINISHED: curves up to step {step:,}", "未完成：曲线到第 {step:,} 步"),
    "started": ("started", "开始时间"),
    "took": ("time taken", "用时"),
    "loss_change": ("validation loss", "验证损失"),
    "chrf_change": ("chrF of replies", "回复的 chrF"),
    # replies
    "replies": ("Replies to held-out questions", "对未参与训练的问题的回复"),
    "question": ("question", "问题"),
    "reference": ("true reply", "参考回复"),
    "base": ("base", "基座模型"),
    "tuned": ("tuned", "微调后"),
    # judged replies
    "judged": ("Judged replies", "回复的评比"),
    "judged_note": (
        "The win rate is that of the second side; a tie counts half. The interval is from resampling the questions.",
        "胜率指第二方的胜率，平局算半胜。区间由对问题重抽样得到。",
    ),
    "judged_winner": (
        "Best checkpoint in a knockout judged by {judge}: {winner}",
        "淘汰赛选出的最佳检查点（评委：{judge}）：{winner}",
    ),
    "judged_first": ("first", "第一方"),
    "judged_second": ("second", "第二方"),
    "judged_judge": ("judge", "评委"),
    "judged_wins": ("wins of the second", "第二方胜"),
    "judged_ties": ("ties", "平局"),
    "judged_losses": ("losses", "第二方负"),
    "judged_unjudged": ("not judged", "未评"),
    "judged_rate": ("win rate", "胜率"),
    "judged_interval": ("95 %", "95 % 区间"),
    "judged_to": (" to ", " 至 "),
    # figures
    "loss": ("Loss", "损失"),
    "scores": ("Scores of the replies", "回复的得分"),
    "training": ("Training", "训练过程"),
    "axis": ("optimizer step", "优化步数"),
    "training_line": ("training", "训练"),
    "validation_line": ("validation", "验证"),
    "panel_loss": ("loss per token", "每个 token 的损失"),
    "panel_perplexity": ("perplexity (logarithmic)", "困惑度（对数坐标）"),
    "panel_stop_rate": ("share that ends by itself", "自行结束的占比"),
    "panel_opens_with_name": ("share with the true name", "以正确名字开头的占比"),
    "panel_length_ratio": ("length over the true length", "与参考回复的长度之比"),
    "panel_distinct_2": ("distinct character pairs", "不重复的双字占比"),
    "panel_repeated_4grams": ("repeated 4-grams", "重复的 4-gram 占比"),
    "panel_copied_share": ("copied from the prompt", "照抄提示词的占比"),
    "panel_learning_rate": ("learning rate", "学习率"),
    "panel_grad_norm": ("gradient norm", "梯度范数"),
    "panel_tokens": ("tokens per second", "每秒 token 数"),
    "panel_padding": ("share of padding", "填充占比"),
    "panel_memory": ("peak GPU memory, GiB", "显存峰值（GiB）"),
    # metrics
    "metrics": ("Metrics", "指标"),
    "metrics_until": ("Values of the base and of step {step:,}.", "基座模型与第 {step:,} 步的数值。"),
    "metric": ("metric", "指标"),
    "name": ("name in TensorBoard", "TensorBoard 中的名称"),
    "change": ("change", "变化"),
    "no_metrics": ("No metric was recorded.", "没有记录任何指标。"),
    "metric_loss": ("loss: mean per token of held-out rows", "损失：未参与训练的数据上，每个 token 的平均值"),
    "metric_best_loss": ("the lowest loss so far", "迄今最低的损失"),
    "metric_perplexity": ("perplexity: exponential of the loss", "困惑度：损失的指数"),
    "metric_chrf": ("chrF: similarity to the true reply, 0 to 100", "chrF：与参考回复的相似度，0–100"),
    "metric_bleu": ("BLEU: shared n-grams, 0 to 100", "BLEU：与参考回复共有的 n-gram，0–100"),
    "metric_rouge_l": ("ROUGE-L: longest common sequence, 0 to 100", "ROUGE-L：最长公共子序列，0–100"),
    "metric_stop_rate": ("share of replies that end by themselves", "自行结束的回复占比"),
    "metric_opens_with_name": ("share that open with the true name", "以正确的名字开头的回复占比"),
    "metric_length_ratio": ("length over that of the true reply", "与参考回复的长度之比"),
    "metric_distinct_1": ("share of distinct characters", "不重复的单字占比"),
    "metric_distinct_2": ("share of distinct pairs of characters", "不重复的双字占比"),
    "metric_repeated_4grams": ("share of repeated 4-grams", "重复的 4-gram 占比"),
    "metric_copied_share": ("share copied from the prompt", "照抄提示词的文字占比"),
    # what is missing
    "missing": ("What is missing, and why", "缺少的内容及原因"),
    "missing_file": ("The folder has no {file}.", "文件夹里没有 {file}。"),
    "missing_unreadable": ("Cannot be read: {detail}", "无法读取（程序原文）：{detail}"),
    "missing_curves": ("There are no curves: {why}.", "没有曲线：{why}。"),
    "missing_validation": ("There is no validation curve: {why}.", "没有验证曲线：{why}。"),
    "missing_base_loss": (
        "The loss of the base is unknown: trainer.num_sanity_val_steps is {steps}, and only -1 validates all rows "
        "before the first step.",
        "不知道基座模型的损失：trainer.num_sanity_val_steps 是 {steps}，只有设为 -1 才会在第一步之前完整验证一次。",
    ),
    "missing_replies": ("There are no sample replies: {why}.", "没有回复样例：{why}。"),
    "missing_base_replies": (
        "The base was not asked: held_out.compare_base is false.",
        "没有基座模型的回复：held_out.compare_base 为 false。",
    ),
    "missing_test_unset": (
        "There is no test loss: fit does not test, and data.test_source is not set.",
        "没有测试损失：fit 不做测试，而且没有设置 data.test_source。",
    ),
    "missing_test": (
        "There is no test loss: fit does not test. Run kyon-pl test with this run's config.yaml; its scores go into a "
        "run folder of their own.",
        "没有测试损失：fit 不做测试。请用本次训练的 config.yaml 运行 kyon-pl test，得分会写入另一个训练文件夹。",
    ),
    "missing_memory": (
        "There is no GPU memory: the run used the CPU.",
        "没有显存数据：本次训练使用 CPU。",
    ),
    "why_no_logger": ("trainer.logger is false", "trainer.logger 为 false"),
    "why_other_logger": (
        "they went to {logger}, and this report reads TensorBoard's files",
        "曲线记录在 {logger} 中，而本报告读取的是 TensorBoard 的文件",
    ),
    "why_before_curves": (
        "the run stopped before its first entry",
        "训练在写入第一个数据点之前就停止了",
    ),
    "why_no_event_files": (
        "the folder has no event files, though the run has finished; they may not have been copied",
        "训练已完成，但文件夹里没有 TensorBoard 的事件文件，可能复制时遗漏了",
    ),
    "why_no_settings": (
        "config.yaml, which would say why, cannot be read",
        "能说明原因的 config.yaml 无法读取",
    ),
    "why_limit": ("trainer.limit_val_batches is 0", "trainer.limit_val_batches 为 0"),
    "why_no_rows": (
        "data.validation_source is not set, and data.validation_share is {share}",
        "没有设置 data.validation_source，而且 data.validation_share 是 {share}",
    ),
    "why_no_rows_left": ("there were no validation rows (see the warnings)", "没有验证数据（见下面的警告）"),
    "why_stopped": (
        "the run stopped at step {step:,}, before the first validation",
        "训练在第 {step:,} 步停止，还没有做第一次验证",
    ),
    "why_interval": (
        "the run has {step:,} steps, and trainer.val_check_interval is {interval}",
        "训练共 {step:,} 步，而 trainer.val_check_interval 是 {interval}",
    ),
    "why_epochs": (
        "trainer.check_val_every_n_epoch is {epochs}",
        "trainer.check_val_every_n_epoch 是 {epochs}",
    ),
    "why_unknown": ("the files of the run do not say why", "训练的文件里没有说明原因"),
    "why_held_out": ("held_out is null", "held_out 为 null"),
    "why_no_held_out_rows": ("there are no validation rows to ask", "没有可以提问的验证数据"),
    "why_before_replies": (
        "the run stopped before the first replies",
        "训练在第一次回复之前就停止了",
    ),
    "why_no_reply_file": (
        "held_out_replies.jsonl is not in the folder, though the curves have scores of replies; it may not have been "
        "copied",
        "曲线里有回复的得分，但文件夹里没有 held_out_replies.jsonl，可能复制时遗漏了",
    ),
    "why_no_tokenizer": (
        "nothing was asked, as when the base has no tokenizer",
        "没有提问，例如基座模型没有分词器",
    ),
    # data, times, settings, warnings
    "data": ("Data", "数据"),
    "part": ("part", "部分"),
    "rows": ("rows", "条数"),
    "tokens": ("tokens", "token 数"),
    "trained_tokens": ("of them trained", "参与训练"),
    "part_train": ("training", "训练"),
    "part_validation": ("validation", "验证"),
    "part_test": ("test", "测试"),
    "no_overlap": (
        "None of the {count} validation {what} is trained on.",
        "{count} 个验证{what}均未参与训练。",
    ),
    "questions": ("questions", "问题"),
    "dialogues": ("dialogues", "对话"),
    "from_log": ("From run.log:", "run.log 原文："),
    "times": ("Speed and time", "速度与用时"),
    "measure": ("measure", "项目"),
    "time_whole": ("from the last start to the last line", "从最近一次启动到日志最后一行"),
    "time_training": ("training", "训练"),
    "steps_in": ("{steps} steps in {time}", "{steps} 步，{time}"),
    "time_estimate": ("estimate before the start", "启动前的估计"),
    "rate_tokens_per_s": ("tokens per second", "每秒 token 数"),
    "rate_trained_tokens_per_s": ("trained tokens per second", "每秒参与训练的 token 数"),
    "rate_rows_per_s": ("rows per second", "每秒条数"),
    "rate_peak_gpu_memory_gib": ("peak GPU memory, GiB", "显存峰值（GiB）"),
    "settings": ("Settings", "设置"),
    "settings_all": ("All settings that are not empty", "所有非空的设置"),
    "settings_that_differ": ("Settings that differ", "不同的设置"),
    "setting": ("setting", "设置"),
    "value": ("value", "值"),
    "none": ("None.", "无。"),
    "warnings": ("Warnings and errors", "警告与错误"),
    "of_run": (": {run}", "：{run}"),
}


def words_in(language: Language) -> Words:
    """The texts in a language."""
    place = ("en", "zh").index(language)
    return {key: texts[place] for key, texts in MESSAGES.items()}


def moment(words: Words, time: datetime) -> str:
    """A date with its time of day."""
    month = words["months"].split()[time.month - 1]
    return words["moment"].format(day=time.day, month=month, year=time.year, hour=time.hour, minute=time.minute)


def span(words: Words, seconds: float) -> str:
    """A duration: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return words["seconds"].format(seconds=seconds)
    minutes = round(seconds / 60)
    if minutes < 90:
        return words["minutes"].format(minutes=minutes)
    return words["hours"].format(hours=minutes // 60, minutes=minutes % 60)
