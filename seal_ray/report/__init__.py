"""What finished runs say: statistics over seeds and the leaderboard of a sweep."""
