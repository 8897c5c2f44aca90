"""So many are let in, of all and of each, and their places are free again after them."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import RateLimitError, ServerBusyError
from ppio_agent.sandbox.templates.admission import Admission


def test_a_tenant_and_all_together_have_so_many_places() -> None:
    admission = Admission("uploads", most=3, each=2, retry_after=7.0)

    with admission.enter("red"), admission.enter("red"):
        with pytest.raises(RateLimitError, match="2 uploads of this key") as limit:
            admission.enter("red").__enter__()
        with (
            admission.enter("blue"),
            pytest.raises(ServerBusyError, match="3 uploads are") as busy,
        ):
            admission.enter("blue").__enter__()
    assert (limit.value.retry_after, busy.value.retry_after) == (7.0, 7.0)


def test_a_place_is_free_again_when_the_block_ends_however_it_ends() -> None:
    admission = Admission("uploads", most=1, each=1)

    with pytest.raises(KeyError), admission.enter("red"):
        raise KeyError
    with admission.enter("blue"):
        pass
