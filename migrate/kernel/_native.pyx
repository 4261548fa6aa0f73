# cython: language_level=3, cdivision=True
"""The native kernel: checks arguments, then calls the C part without the GIL. `_native.pyi` is the contract."""

import hashlib
import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from migrate.kernel.kernel cimport *

from migrate.errors import RamError, RecordError, VerifyError
from migrate.kernel.results import ApplyResult, FillResult, RamBlock, WalkResult

IMPLEMENTATION = "native"

include "native_arguments.pxi"
include "native_pages.pxi"
include "native_batches.pxi"
include "native_bitmaps.pxi"
include "native_tracking.pxi"
include "native_walk.pxi"
