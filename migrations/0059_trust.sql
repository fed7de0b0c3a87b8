-- +goose Up
-- What vouches for the sender of a message: how the client logged in, or that
-- its network may relay; 'stranger' for one that came for the sake of its
-- recipients' domain alone, whose reverse-path nobody has verified. Empty: mail
-- by SQL, our own, and what was accepted before.
ALTER TABLE postrider.messages ADD COLUMN trust text NOT NULL DEFAULT '';
