module nimway/bench/goload

go 1.26
