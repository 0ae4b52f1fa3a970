"""How a small model writes best, where nobody says otherwise.

Its distribution has a long tail of unlikely tokens, and one of them derails what follows. The
likeliest token alone would soon repeat itself.
"""

TEMPERATURE = 0.8
TOP_K = 50
# In the names of transformers' GenerationConfig.
SAMPLING = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K}
