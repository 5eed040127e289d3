"""Whole runs with faults inside and out, recounted by an independent checker. CHAOS=full for the long version."""

import pytest

pytest.register_assert_rewrite("tests.chaos.ground")
