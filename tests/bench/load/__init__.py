"""Programs that put load on a server, or measure a cost; each prints one JSON object."""
