"""Lets the asserts in ``contract.py``, which is no test file by name, explain themselves like those in one."""

import pytest

pytest.register_assert_rewrite("contract", "gates_contract", "schedule_contract", "steps_contract")
