import os

from hypothesis import settings

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

settings.register_profile('default', deadline=None)  # first calls compile; other machines are slower
settings.load_profile('default')
