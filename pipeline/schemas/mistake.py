"""What is wrong with a schema."""


class SchemaError(ValueError):
    """A schema that cannot be asked for; `hint` is what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
