"""The one owner of transport: every byte that Tokenmill reads or publishes goes through a `Storage`.

* `Storage.stream` reads a shard as one sequence of bytes at a fixed memory budget. A broken read goes on at its offset,
  and only while the object is still the one that the manifest froze.
* `Storage.create` publishes a finished local file under a name only if that name is free.
* Retries have one owner, `retry`: what the clients would do by themselves is turned off (`clients`). `failures` says
  which errors are worth another try, `rate` how fast the store may be asked, `start` when a process may begin to ask.

    storage -> local      files: plain system calls
            -> remote     object stores: the only file that imports fsspec
            -> hub        what is different on the Hugging Face Hub
            -> multipart  S3's upload of large files
"""

from pipeline.storage.blob import Blob, ByteStream
from pipeline.storage.config import StorageConfig
from pipeline.storage.failures import Forbidden
from pipeline.storage.storage import Storage

__all__ = ["Blob", "ByteStream", "Forbidden", "Storage", "StorageConfig"]
