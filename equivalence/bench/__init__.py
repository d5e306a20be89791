"""A bench for trainers of other people: problems whose signal is known, and claims about whatever is left."""
