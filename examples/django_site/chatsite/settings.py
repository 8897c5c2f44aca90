"""Settings of the site."""

import os

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]  # gunicorn.conf.py tells how
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "chatsite.urls"
WSGI_APPLICATION = "chatsite.wsgi.application"

MIDDLEWARE = [
    "django.middleware.gzip.GZipMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [os.path.join(os.path.dirname(__file__), "templates")],
    }
]
# In the visitor's cookie, signed: no database is needed.
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

# The address and the key of the platform come from the environment.
PPIO_AGENT = {"timeout": 60, "sandbox_timeout": 900}
