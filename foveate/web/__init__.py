"""The page in the browser: a thin layer over the facade, as the command line is."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
