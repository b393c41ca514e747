;; An empty module; the component instantiates it ten thousand times.
(module)
