;; Its start function never returns.
(module
  (func $start (loop (br 0)))
  (start $start))
