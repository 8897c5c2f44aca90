"""What gunicorn serves."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
application = get_wsgi_application()

from ppio_agent.client.django import get_client  # noqa: E402 - after the settings

get_client()  # a wrong setting ends the start, not the first visit
