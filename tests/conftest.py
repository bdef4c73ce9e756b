"""For all tests: nothing from the developer's own environment, and no time limit per example."""

import os

from hypothesis import settings

for name in list(os.environ):
    if name.startswith(("NIGHTMILL_", "OPENAI_")):
        del os.environ[name]

# A shared machine stalls now and then; pytest-timeout bounds a whole test.
settings.register_profile("nightmill", deadline=None)
settings.load_profile("nightmill")
