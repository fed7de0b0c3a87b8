module github.com/postrider/postrider/tests

go 1.26.0

replace github.com/postrider/postrider => ../
