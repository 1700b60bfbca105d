import os

from hypothesis import settings

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

# No deadline: first calls compile, other machines are slower. In CI always the same examples.
settings.register_profile('default', deadline=None, derandomize='CI' in os.environ)
settings.load_profile('default')
