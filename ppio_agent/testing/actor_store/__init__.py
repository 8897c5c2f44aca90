"""The contract of every store of actors, as a class of tests.

Derive from it in a file of tests of your own, and say what is tested:

.. code-block:: python

    class TestMyStore(ActorStoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            store = MyStore(tmp_path)
            yield store
            store.close()
"""

from __future__ import annotations

from .kept import KeptContract
from .requests import RequestContract
from .state import StateContract
from .times import TimeContract
from .turns import TurnContract

__all__ = ["ActorStoreContract"]


class ActorStoreContract(
    StateContract, RequestContract, TurnContract, TimeContract, KeptContract
):
    """What every `IActorStore` does, one test for each promise.

    Override the fixture `store`: an empty store for each test, closed after it. For a
    store that several processes share override `peer`, too: another object that uses
    the same data, as another process would.

    No test needs a clock that can be set: where time must pass, it is an argument.
    """
