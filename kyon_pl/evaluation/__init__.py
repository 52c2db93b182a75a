"""What replies are worth, and what a run says of itself: metrics, curves, report."""
