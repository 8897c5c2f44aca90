"""The one listener: heads by h11, routing per request, bodies streamed both ways."""
