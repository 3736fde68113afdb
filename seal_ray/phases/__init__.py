"""What a phase is made of, as frozen values: the schedule, edits, steps and losses."""
