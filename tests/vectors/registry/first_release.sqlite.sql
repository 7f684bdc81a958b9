-- What the first release's own Registry made and wrote, dumped by sqlite3.Connection.iterdump.
-- Days were moved to the past; the tokens are dmcp_ and 43 times A (ann), B (bob) or C (eve).
BEGIN TRANSACTION;
CREATE TABLE grants (
	id INTEGER NOT NULL, 
	user_id INTEGER NOT NULL, 
	dataset VARCHAR(64) NOT NULL, 
	created DATETIME NOT NULL, 
	expires DATETIME, 
	revoked DATETIME, 
	PRIMARY KEY (id), 
	FOREIGN KEY(user_id) REFERENCES users (id)
);
INSERT INTO "grants" VALUES(1,1,'photos','2025-01-31 17:57:22.787797',NULL,NULL);
INSERT INTO "grants" VALUES(2,1,'faces','2025-01-31 17:57:22.814684','2099-01-01 00:00:00.000000',NULL);
INSERT INTO "grants" VALUES(3,2,'photos','2025-01-31 17:57:22.826765',NULL,'2025-01-31 17:57:22.830715');
INSERT INTO "grants" VALUES(4,2,'photos','2025-01-31 17:57:22.839032','2098-01-01 00:00:00.000000',NULL);
CREATE TABLE registry_schema (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "registry_schema" VALUES(1);
CREATE TABLE requests (
	id VARCHAR(32) NOT NULL, 
	user_id INTEGER NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	dataset VARCHAR(64), 
	source TEXT NOT NULL, 
	subset JSON, 
	state VARCHAR(16) NOT NULL, 
	created DATETIME NOT NULL, 
	started DATETIME, 
	finished DATETIME, 
	images INTEGER NOT NULL, 
	restored INTEGER NOT NULL, 
	refused INTEGER NOT NULL, 
	message TEXT, 
	result TEXT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(user_id) REFERENCES users (id)
);
INSERT INTO "requests" VALUES('00000000000000000000000000000001',1,'published','photos','photos@0123456789abcdef','["a", "b"]','done','2025-01-31 17:57:22.864042','2025-01-31 17:57:22.875026','2025-01-31 17:57:22.899055',2,1,1,'one refused','requests/1');
INSERT INTO "requests" VALUES('00000000000000000000000000000002',2,'upload',NULL,'it''s mine; really',NULL,'pending','2025-01-31 17:57:22.914709',NULL,NULL,0,0,0,NULL,NULL);
INSERT INTO "requests" VALUES('00000000000000000000000000000003',2,'upload',NULL,'x',NULL,'running','2025-01-31 17:57:22.922679','2025-01-31 17:57:22.930939',NULL,0,0,0,NULL,NULL);
CREATE TABLE users (
	id INTEGER NOT NULL, 
	name VARCHAR(128) NOT NULL, 
	created DATETIME NOT NULL, 
	token_hash VARCHAR(64) NOT NULL, 
	token_prefix VARCHAR(16) NOT NULL, 
	disabled BOOLEAN NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "users" VALUES(1,'ann','2025-01-31 17:57:22.761717','1a3102d856a6425b6aa7d51f8a38ea8be9d972339e644763809d0ef161259cea','dmcp_AAAAAAAA',0);
INSERT INTO "users" VALUES(2,'bob','2025-01-31 17:57:22.771013','520c9c72c4cb9442e8fca28811f450b668a56d85c9324e2f000ce2792dc80541','dmcp_BBBBBBBB',0);
INSERT INTO "users" VALUES(3,'eve','2025-01-31 17:57:22.775045','6a138d441fefed72f0894b3f21900014db25d91dda1013b9c7844e967eaab34d','dmcp_CCCCCCCC',1);
CREATE INDEX ix_users_token_prefix ON users (token_prefix);
CREATE INDEX grants_of ON grants (user_id, dataset);
CREATE INDEX ix_requests_user_id ON requests (user_id);
CREATE INDEX ix_requests_state ON requests (state);
COMMIT;
