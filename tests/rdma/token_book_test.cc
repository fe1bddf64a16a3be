#include "rdma/token_book.h"

#include <gtest/gtest.h>

#include <set>

namespace moonpool::rdma {
namespace {

constexpr int64_t kLifetime = 1000;

TEST(TokenBook, ATokenIsGoodOnce) {
  TokenBook book;
  const Token token = book.Issue(7, 0, kLifetime);
  EXPECT_EQ(book.Redeem(token, 7, 10), std::nullopt);
  EXPECT_EQ(book.Redeem(token, 7, 11), RejectReason::kUsedToken);
}

TEST(TokenBook, ForItsSession) {
  TokenBook book;
  const Token token = book.Issue(7, 0, kLifetime);
  EXPECT_EQ(book.Redeem(token, 8, 10), RejectReason::kWrongSession);
  // Who tried it in another session has used it up.
  EXPECT_EQ(book.Redeem(token, 7, 11), RejectReason::kUsedToken);
}

TEST(TokenBook, ForAWhile) {
  TokenBook book;
  const Token token = book.Issue(7, 0, kLifetime);
  EXPECT_EQ(book.Redeem(token, 7, kLifetime), RejectReason::kExpiredToken);
  const Token other = book.Issue(7, 0, kLifetime);
  EXPECT_EQ(book.Redeem(other, 7, kLifetime - 1), std::nullopt);
}

TEST(TokenBook, WhatWasNeverIssuedIsUnknown) {
  TokenBook book;
  book.Issue(7, 0, kLifetime);
  EXPECT_EQ(book.Redeem(Token{}, 7, 1), RejectReason::kUnknownToken);
}

TEST(TokenBook, TheEndOfASessionEndsItsTokens) {
  TokenBook book;
  const Token one = book.Issue(7, 0, kLifetime);
  const Token other = book.Issue(8, 0, kLifetime);
  book.Revoke(7);
  EXPECT_EQ(book.Redeem(one, 7, 1), RejectReason::kUnknownToken);
  EXPECT_EQ(book.Redeem(other, 8, 1), std::nullopt);
}

TEST(TokenBook, OfManyTokensOfASessionTheLastAreGood) {
  TokenBook book;
  const Token of_another = book.Issue(8, 0, kLifetime);
  const Token first = book.Issue(7, 0, kLifetime);
  const Token second = book.Issue(7, 0, kLifetime);
  for (size_t i = 1; i < TokenBook::kMostPerSession; ++i) book.Issue(7, 0, kLifetime);
  EXPECT_EQ(book.size(), TokenBook::kMostPerSession + 1);
  EXPECT_EQ(book.Redeem(first, 7, 1), RejectReason::kUnknownToken);
  EXPECT_EQ(book.Redeem(second, 7, 1), std::nullopt);
  EXPECT_EQ(book.Redeem(of_another, 8, 1), std::nullopt);
}

TEST(TokenBook, OldOnesAreForgotten) {
  TokenBook book;
  std::set<Token> all;
  for (int i = 0; i < 100; ++i) all.insert(book.Issue(1, 0, kLifetime));
  EXPECT_EQ(all.size(), 100u);
  EXPECT_EQ(book.size(), 100u);
  book.Issue(1, kLifetime + 120000, kLifetime);
  EXPECT_EQ(book.size(), 1u);
}

}  // namespace
}  // namespace moonpool::rdma
