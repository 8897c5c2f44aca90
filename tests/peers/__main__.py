"""Make the environments of published packages that the tests drive."""

from tests.peers import make_all

make_all()
