"""Public weights of other frameworks, brought in without running their code."""
