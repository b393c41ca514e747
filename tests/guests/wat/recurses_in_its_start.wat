;; Its start function calls itself until there is no stack.
(module
  (func $start (call $start))
  (start $start))
