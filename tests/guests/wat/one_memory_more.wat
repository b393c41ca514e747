;; One memory; the component instantiates it a hundred times.
(module (memory 1))
