"""How to run the site.

pip install -r requirements.txt
ppio-agent up                       # in a terminal of its own: the local platform
export PPIO_API_URL=… PPIO_API_KEY=…              # as it prints them
ppio-agent deploy agent
export FLASK_SECRET_KEY=…           # any long random text, the same at each start
gunicorn                            # reads this file; http://127.0.0.1:8000/
"""

wsgi_app = "chatsite:create_app()"
bind = "127.0.0.1:8000"
workers = 4
# The app and its client are made once, in the parent; the workers are its children.
preload_app = True
# A visitor whose answer streams has a thread until it ends.
worker_class = "gthread"
threads = 32
graceful_timeout = 20
