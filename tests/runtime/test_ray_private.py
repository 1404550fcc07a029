"""The private parts of Ray that are used are where they were, and one that has moved is named."""

import importlib
import inspect
import logging
import warnings

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


def test_ray_s_advice_about_its_own_operators_is_not_shown_and_a_lack_of_resources_is():
    from ray.data._internal.execution.operators import actor_pool_map_operator, task_pool_map_operator
    from ray.data._internal.issue_detection import issue_detector_manager

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ray_private.quieten_libraries()
        for operators, text in (
            (actor_pool_map_operator, "The minimum number of concurrent actors for "),
            (task_pool_map_operator, "The maximum number of concurrent tasks for "),
        ):
            assert text in inspect.getsource(operators)
            warnings.warn(f"{text}'Map(f)' is set to 2, but the operator only received 1 input(s).", stacklevel=1)
    assert not issue_detector_manager.logger.isEnabledFor(logging.WARNING)
    assert logging.getLogger("ray.data._internal.execution.resource_manager").isEnabledFor(logging.WARNING)
