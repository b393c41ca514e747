;; Grows its table for as long as it may.
(module
  (table $table 1 funcref)
  (func $start
    (loop
      (drop (table.grow $table (ref.null func) (i32.const 1000)))
      (br 0)))
  (start $start))
