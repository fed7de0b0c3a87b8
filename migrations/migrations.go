// Package migrations holds the schema of postrider as numbered, forward-only
// SQL files. Package store applies them under an advisory lock.
package migrations

import "embed"

// Files are the migrations, named NNNN_what.sql.
//
//go:embed *.sql
var Files embed.FS
