;; Declares four gigabytes of memory.
(module (memory 65536))
