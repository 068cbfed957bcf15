"""Parts of a comparison's leaderboard: tables, sentences, pictures; `report.leaderboard` puts them together."""
