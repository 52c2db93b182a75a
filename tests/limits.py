"""How long a test waits for another process before it calls that a hang."""

HANG_S = 1200  # 20 times the longest test alone: a busy machine is slow, and only a hang takes this long
