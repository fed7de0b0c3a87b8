module github.com/postrider/postrider/tests

go 1.26.0

replace github.com/postrider/postrider => ../

tool github.com/nats-io/nats-server/v2

require (
	github.com/jackc/pgx/v5 v5.12.0
	github.com/nats-io/nats-server/v2 v2.15.2
	golang.org/x/sync v0.24.0
)
