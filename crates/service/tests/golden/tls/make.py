"""Writes a root, certificates that it signed for this host and for another name, and the key of both. With cryptography 50."""
import datetime
import ipaddress
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT_KEY, KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def name(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def write(file, subject, key, *extensions):
    builder = x509.CertificateBuilder(
        name('test root'), name(subject), key.public_key(), x509.random_serial_number(), datetime.datetime(2020, 1, 1),
        datetime.datetime(2120, 1, 1))
    identifiers = (x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                   x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT_KEY.public_key()))
    for extension in extensions + identifiers:
        builder = builder.add_extension(extension, critical=isinstance(extension, (x509.BasicConstraints, x509.KeyUsage)))
    with open(os.path.join(HERE, file), 'wb') as out:
        out.write(builder.sign(ROOT_KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


write('root.pem', 'test root', ROOT_KEY, x509.BasicConstraints(True, None), x509.KeyUsage(
    False, False, False, False, False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False))
SERVER = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), x509.BasicConstraints(False, None)
write('server.pem', 'server', KEY, *SERVER, x509.SubjectAlternativeName(
    [x509.DNSName('localhost'), x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]))
write('elsewhere.pem', 'elsewhere', KEY, *SERVER, x509.SubjectAlternativeName([x509.DNSName('elsewhere.example')]))
with open(os.path.join(HERE, 'server.key'), 'wb') as out:
    out.write(KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
