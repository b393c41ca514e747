;; One table; the component instantiates it a hundred times.
(module (table 1 funcref))
