module nimway/bench/goproxy

go 1.26
