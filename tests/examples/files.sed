s,^.*/conc-files-.*,/tmp/conc-files-N,
