"""The error whose message is all that a user needs."""


class TrainingError(Exception):
    """Something that the user can mend: a wrong path, a broken picture, options that do not fit. One sentence."""
