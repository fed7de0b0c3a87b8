/*
 * Debian 12's OpenSMTPD (6.8.0p2) was written for OpenSSL 1.1 and is linked
 * with OpenSSL 3. Its process that faces the network has no private keys: it
 * takes the public key of the certificate, marks the RSA or EC_KEY in it, and
 * has another process sign what comes by that mark. OpenSSL 3 gives it a copy
 * of that RSA or EC_KEY, so the mark is lost and every handshake ends with
 * "missing private key" (OpenSMTPD issue 1171). Releases from 7.3 on set the
 * marked key again, and so does this library, when it is preloaded.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

typedef struct evp_pkey_st EVP_PKEY;
typedef struct ssl_ctx_st SSL_CTX;

extern int EVP_PKEY_get_base_id(const EVP_PKEY *);
extern void *EVP_PKEY_get1_RSA(EVP_PKEY *);
extern int EVP_PKEY_set1_RSA(EVP_PKEY *, void *);
extern void *EVP_PKEY_get1_EC_KEY(EVP_PKEY *);
extern int EVP_PKEY_set1_EC_KEY(EVP_PKEY *, void *);

enum { RSA_KEY = 6, EC_KEY = 408 }; /* NID_rsaEncryption, NID_X9_62_id_ecPublicKey */

int
SSL_CTX_use_PrivateKey(SSL_CTX *ctx, EVP_PKEY *key)
{
	int (*next)(SSL_CTX *, EVP_PKEY *) = dlsym(RTLD_NEXT, "SSL_CTX_use_PrivateKey");

	switch (EVP_PKEY_get_base_id(key)) {
	case RSA_KEY:
		EVP_PKEY_set1_RSA(key, EVP_PKEY_get1_RSA(key));
		break;
	case EC_KEY:
		EVP_PKEY_set1_EC_KEY(key, EVP_PKEY_get1_EC_KEY(key));
		break;
	}
	return next(ctx, key);
}
