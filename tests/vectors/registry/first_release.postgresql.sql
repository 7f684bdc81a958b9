-- What the first release's own Registry made and wrote, dumped by pg_dump --inserts, without its settings and the schema's name.
-- Days were moved to the past; the tokens are dmcp_ and 43 times A (ann), B (bob) or C (eve).
CREATE TABLE grants (
    id integer NOT NULL,
    user_id integer NOT NULL,
    dataset character varying(64) NOT NULL,
    created timestamp with time zone NOT NULL,
    expires timestamp with time zone,
    revoked timestamp with time zone
);
CREATE SEQUENCE grants_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE grants_id_seq OWNED BY grants.id;
CREATE TABLE registry_schema (
    version integer NOT NULL
);
CREATE TABLE requests (
    id character varying(32) NOT NULL,
    user_id integer NOT NULL,
    kind character varying(16) NOT NULL,
    dataset character varying(64),
    source text NOT NULL,
    subset json,
    state character varying(16) NOT NULL,
    created timestamp with time zone NOT NULL,
    started timestamp with time zone,
    finished timestamp with time zone,
    images integer NOT NULL,
    restored integer NOT NULL,
    refused integer NOT NULL,
    message text,
    result text
);
CREATE TABLE users (
    id integer NOT NULL,
    name character varying(128) NOT NULL,
    created timestamp with time zone NOT NULL,
    token_hash character varying(64) NOT NULL,
    token_prefix character varying(16) NOT NULL,
    disabled boolean NOT NULL
);
CREATE SEQUENCE users_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE users_id_seq OWNED BY users.id;
ALTER TABLE ONLY grants ALTER COLUMN id SET DEFAULT nextval('grants_id_seq'::regclass);
ALTER TABLE ONLY users ALTER COLUMN id SET DEFAULT nextval('users_id_seq'::regclass);
INSERT INTO grants VALUES (1, 1, 'photos', '2025-01-31 17:57:31.670358+00', NULL, NULL);
INSERT INTO grants VALUES (2, 1, 'faces', '2025-01-31 17:57:31.716059+00', '2099-01-01 00:00:00+00', NULL);
INSERT INTO grants VALUES (3, 2, 'photos', '2025-01-31 17:57:31.722449+00', NULL, '2025-01-31 17:57:31.742251+00');
INSERT INTO grants VALUES (4, 2, 'photos', '2025-01-31 17:57:31.753499+00', '2098-01-01 00:00:00+00', NULL);
INSERT INTO registry_schema VALUES (1);
INSERT INTO requests VALUES ('00000000000000000000000000000001', 1, 'published', 'photos', 'photos@0123456789abcdef', '["a", "b"]', 'done', '2025-01-31 17:57:31.774179+00', '2025-01-31 17:57:31.777832+00', '2025-01-31 17:57:31.814902+00', 2, 1, 1, 'one refused', 'requests/1');
INSERT INTO requests VALUES ('00000000000000000000000000000002', 2, 'upload', NULL, 'it''s mine; really', NULL, 'pending', '2025-01-31 17:57:31.8266+00', NULL, NULL, 0, 0, 0, NULL, NULL);
INSERT INTO requests VALUES ('00000000000000000000000000000003', 2, 'upload', NULL, 'x', NULL, 'running', '2025-01-31 17:57:31.83137+00', '2025-01-31 17:57:31.847049+00', NULL, 0, 0, 0, NULL, NULL);
INSERT INTO users VALUES (1, 'ann', '2025-01-31 17:57:31.618824+00', '1a3102d856a6425b6aa7d51f8a38ea8be9d972339e644763809d0ef161259cea', 'dmcp_AAAAAAAA', false);
INSERT INTO users VALUES (2, 'bob', '2025-01-31 17:57:31.634738+00', '520c9c72c4cb9442e8fca28811f450b668a56d85c9324e2f000ce2792dc80541', 'dmcp_BBBBBBBB', false);
INSERT INTO users VALUES (3, 'eve', '2025-01-31 17:57:31.642096+00', '6a138d441fefed72f0894b3f21900014db25d91dda1013b9c7844e967eaab34d', 'dmcp_CCCCCCCC', true);
SELECT pg_catalog.setval('grants_id_seq', 4, true);
SELECT pg_catalog.setval('users_id_seq', 3, true);
ALTER TABLE ONLY grants
    ADD CONSTRAINT grants_pkey PRIMARY KEY (id);
ALTER TABLE ONLY registry_schema
    ADD CONSTRAINT registry_schema_pkey PRIMARY KEY (version);
ALTER TABLE ONLY requests
    ADD CONSTRAINT requests_pkey PRIMARY KEY (id);
ALTER TABLE ONLY users
    ADD CONSTRAINT users_name_key UNIQUE (name);
ALTER TABLE ONLY users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);
CREATE INDEX grants_of ON grants USING btree (user_id, dataset);
CREATE INDEX ix_requests_state ON requests USING btree (state);
CREATE INDEX ix_requests_user_id ON requests USING btree (user_id);
CREATE INDEX ix_users_token_prefix ON users USING btree (token_prefix);
ALTER TABLE ONLY grants
    ADD CONSTRAINT grants_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id);
ALTER TABLE ONLY requests
    ADD CONSTRAINT requests_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id);
