"""Where the truth is known: identity cards of regularizers, and `gan try`, which makes them."""
