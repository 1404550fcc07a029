"""The private parts of Ray that are used are where they were, and one that has moved is named."""

import importlib

import pytest

from pipelines.runtime import ray_private
from pipelines.runtime.errors import InputError


@pytest.mark.parametrize("name", ray_private.PARTS)
def test_every_private_part_of_ray_is_where_it_was(name):
    assert ray_private.part(name) is not None


@pytest.mark.parametrize("name", ray_private.PARTS)
def test_a_part_of_ray_that_has_moved_is_named_with_the_version(name, monkeypatch):
    module, *owners, last = ray_private._split(name)
    owner = importlib.import_module(module)
    if owners:
        # A class of the compiled module, whose attributes cannot be removed.
        monkeypatch.delattr(owner, owners[0])
    else:
        monkeypatch.delattr(owner, last)
    with pytest.raises(InputError, match=rf"Ray \d+\.\d+\.\d+ has no {name}, which Firnline uses; install the version"):
        ray_private.part(name)


def test_an_option_of_ray_data_that_is_gone_is_named():
    from ray.data import DataContext

    context = DataContext.get_current()
    with pytest.raises(InputError, match=r"has no ray\.data\.DataContext\.retried_everything"):
        ray_private.set_data_option(context, "retried_everything", True)
    assert not hasattr(context, "retried_everything")
