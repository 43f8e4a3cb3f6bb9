"""What a run does, leaves in its folder, goes on from, and shows while it trains."""
