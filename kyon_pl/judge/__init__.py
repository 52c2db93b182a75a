"""Which of two models replies better: held-out questions, replies of both sides, and a judge who compares them."""
